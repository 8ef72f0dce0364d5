"""The daemon itself over /v1: health, capabilities, keys, images, its log."""
