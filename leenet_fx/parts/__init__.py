"""What a method is made of: branches, objectives, recipes, policies."""
