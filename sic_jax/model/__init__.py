"""The codec's networks: transforms, hyperprior, context model, detail sampler."""
