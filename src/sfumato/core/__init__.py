"""One denoising step by named rows: schedules, sites, taps, guidance, plans, the loop."""
