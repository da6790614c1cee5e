# Makes mclust.json: what the R package mclust (Scrucca, Fop, Murphy & Raftery 2016, The R Journal 8) finds for the
# 14 covariance models on four of R's own data sets. Run by hand, in this folder: Rscript mclust.R
#
# From one hard partition of each: one M-step, and EM until it changes nothing. `null` where mclust gives a model up.

suppressMessages(library(mclust))

MODELS <- c("EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV", "VVV")
DATA <- list(
  faithful = list(rows = faithful, k = 3),
  trees = list(rows = trees, k = 2),
  iris = list(rows = iris[, 1:4], k = 3),
  quakes = list(rows = quakes[seq(1, 1000, 3), ], k = 4)
)

json <- function(x) {
  if (is.null(x)) return("null")
  if (is.list(x)) return(paste0("{", paste0('"', names(x), '": ', sapply(x, json), collapse = ",\n"), "}"))
  if (!is.null(dim(x))) return(paste0("[", paste(apply(x, 1, json), collapse = ",\n"), "]"))
  text <- if (is.character(x)) paste0('"', x, '"') else format(x, digits = 14, trim = TRUE, scientific = NA)
  text <- if (is.numeric(x)) sapply(x, function(v) format(v, digits = 14, trim = TRUE)) else text
  if (length(text) == 1) text else paste0("[", paste(text, collapse = ", "), "]")
}

model <- function(x, z, name) {
  n <- nrow(x); d <- ncol(x); k <- ncol(z)
  control <- emControl(tol = c(1e-13, 1e-13), itmax = c(1e5, 1e5))
  step <- mstep(x, modelName = name, z = z, control = control, warn = FALSE)
  sigma <- step$parameters$variance$sigma
  fit <- tryCatch(me(x, modelName = name, z = z, control = control, warn = FALSE), error = function(e) NULL)
  df <- nMclustParams(name, d, k)
  found <- list(df = df, sigma = t(matrix(sigma, d * d, k)))
  if (is.null(fit) || !is.finite(fit$loglik)) return(c(found, list(em = NULL)))
  fit$bic <- bic(name, fit$loglik, n, d, k)
  fit$classification <- map(fit$z)
  c(found, list(em = list(loglik = fit$loglik, bic = fit$bic, icl = icl(structure(fit, class = "Mclust")))))
}

data_set <- function(rows, k) {
  x <- as.matrix(rows)
  partition <- cutree(hclust(dist(scale(x)), "ward.D2"), k)
  z <- unmap(partition)
  step <- mstep(x, modelName = "VVV", z = z)$parameters
  models <- lapply(setNames(MODELS, MODELS), function(name) model(x, z, name))
  list(rows = unname(x), partition = unname(partition) - 1, weights = step$pro, means = t(unname(step$mean)),
       models = models)
}

found <- lapply(DATA, function(data) data_set(data$rows, data$k))
writeLines(json(c(list(made_with = paste("mclust", packageVersion("mclust"))), found)), "mclust.json")
