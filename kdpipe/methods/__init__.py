"""Methods: one file per way to distil a student."""
