"""What training needs besides the method: objective, baselines, schedules, records, checkpoints."""
