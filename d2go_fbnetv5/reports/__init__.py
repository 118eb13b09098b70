"""All that tells a person what happened: history, results, drawings, plots and pages."""
