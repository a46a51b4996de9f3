"""From a learner and tasks to gradients."""
