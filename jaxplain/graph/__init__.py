"""Program analysis: what the traced score is, before any method looks at it. Knows no method."""
