"""What any `nn.Module` is to this library: its layers, its norms, its activations, a function of
its weights.
"""
