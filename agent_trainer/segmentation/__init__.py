"""3D segmentation by MONAI's networks: settings, learner, measures that sites can add up, a site's practice."""
