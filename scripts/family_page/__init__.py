"""What docs/family.md is made of: models, measurements, figures and the page itself."""
