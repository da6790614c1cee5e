# Makes mclust.json: what the R package mclust (Scrucca, Fop, Murphy & Raftery 2016, The R Journal 8) finds for the
# 14 covariance models on four of R's own data sets. Run by hand, in this folder: Rscript mclust.R
#
# From one hard partition of each: the covariances of one M-step, and EM until it changes nothing; the same under mclust's
# default prior, for the models that have one. And what its own search chooses, for three.

suppressMessages(library(mclust))

models <- c("EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV", "VVV")
with_priors <- c("EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "EEV", "VEV", "VVV")
data_sets <- list(
  faithful = list(rows = faithful, k = 3),
  trees = list(rows = trees, k = 2),
  iris = list(rows = iris[, 1:4], k = 3),
  quakes = list(rows = quakes[seq(1, 1000, 3), ], k = 4)
)
control <- emControl(tol = c(1e-13, 1e-13), itmax = c(1e5, 1e5))

# Numbers, strings, matrices (an array of rows) and named lists.
json <- function(x) {
  if (is.list(x)) return(paste0("{", paste0('"', names(x), '": ', sapply(x, json), collapse = ",\n"), "}"))
  if (is.matrix(x)) return(paste0("[", paste(apply(x, 1, json), collapse = ",\n"), "]"))
  text <- if (is.character(x)) paste0('"', x, '"') else ifelse(is.na(x), "null", sapply(x, format, digits = 14))
  if (length(text) == 1) text else paste0("[", paste(text, collapse = ", "), "]")
}

one_model <- function(name, x, z) {
  sigma <- mstep(x, modelName = name, z = z, control = control)$parameters$variance$sigma
  fit <- me(x, modelName = name, z = z, control = control)
  fit$classification <- map(fit$z)
  fit$bic <- bic(name, fit$loglik, nrow(x), ncol(x), ncol(z))
  list(
    covariances = t(matrix(sigma, ncol = ncol(z))), # one a row
    df = nMclustParams(name, ncol(x), ncol(z)),
    log_likelihood = fit$loglik,
    bic = fit$bic,
    icl = icl(structure(fit, class = "Mclust"))
  )
}

one_prior <- function(name, x, z) {
  found <- mstep(x, modelName = name, z = z, prior = priorControl(), control = control)$parameters
  fit <- me(x, modelName = name, z = z, prior = priorControl(), control = control)
  list(
    means = t(found$mean),
    covariances = t(matrix(found$variance$sigma, ncol = ncol(z))),
    log_likelihood = fit$loglik
  )
}

one_data_set <- function(data) {
  x <- unname(as.matrix(data$rows))
  partition <- unname(cutree(hclust(dist(scale(x)), "ward.D2"), data$k))
  found <- sapply(models, one_model, x, unmap(partition), simplify = FALSE)
  with_prior <- sapply(with_priors, one_prior, x, unmap(partition), simplify = FALSE)
  list(rows = x, partition = partition - 1, models = found, with_prior = with_prior)
}

# What a search over all models and up to nine components chooses.
one_choice <- function(rows) {
  fit <- Mclust(rows, verbose = FALSE)
  list(rows = unname(as.matrix(rows)), model = fit$modelName, k = fit$G, bic = fit$bic)
}

found <- c(
  made_with = paste("mclust", packageVersion("mclust")),
  lapply(data_sets, one_data_set),
  choices = list(lapply(list(faithful = faithful, iris = iris[, 1:4], swiss = swiss), one_choice))
)
writeLines(json(found), "mclust.json")
