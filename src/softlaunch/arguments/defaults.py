"""What a method takes where the option for it is not given: None stays its default, for options tell methods apart."""

LORA_R = 8
LORA_ALPHA = 32
NUM_TRAINED_LAYERS = 2  # of freeze
