"""Running an analyzed program with rules in place of derivatives."""
