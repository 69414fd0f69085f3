"""What a person wants done, as plain calls: no argv, no prints."""
