"""What one component of a mixture is: distributions, their sufficient statistics and their M-steps."""

# Families of independent features, by the module that each stands in; `daskgmm` has a mixture of each by that name.
PRODUCTS = {
    "bernoulli": "Bernoulli",
    "categorical": "Categorical",
    "poisson": "Poisson",
}
