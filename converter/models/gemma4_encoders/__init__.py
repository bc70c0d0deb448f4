"""Gemma 4's encoders of images and audio: a transformer over patches, and a conformer over mel frames."""
