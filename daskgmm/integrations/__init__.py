"""daskgmm in pipelines: each module needs what it is named after, and no other part of daskgmm needs any of them."""
