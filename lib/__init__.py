"""A thin library under the notebooks: one module a stage, and the nouns the stages share."""
