"""scikit-learn's interface. Wiring only: options are resolved here, and fitted attributes set."""
