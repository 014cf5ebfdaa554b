"""All that knows pixels: decoding, augmentation, statistics of pictures; stage prepare."""
