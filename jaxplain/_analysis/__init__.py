"""What a program means: which stretches of it are layers, activations, softmaxes, normalizations."""
