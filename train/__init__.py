import srgan  # noqa: F401  (before torch: it has something to say to torch's threads)
