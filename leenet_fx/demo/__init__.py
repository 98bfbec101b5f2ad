"""The demo on real images: data, job, pictures."""
