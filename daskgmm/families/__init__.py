"""What one component is: φ, θ and the M-step. NumPy and SciPy only."""
