"""What the library needs of any `nn.Module`: layers, norms, activations, a function of weights."""
