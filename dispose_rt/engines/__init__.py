"""Engine directories: what they hold, whether they can be used here, and the engines in them."""
