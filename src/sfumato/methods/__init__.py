"""The methods: a file each, which is the paper on one screen."""
