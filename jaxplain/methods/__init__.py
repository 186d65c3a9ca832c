"""The methods, one family a file. Each is mathematics over a `Call`; the protocol around it is in `_explainer`."""
