"""How the bundled digit pipelines are made: captions, pictures, checker, text encoders, VAE, denoiser."""
