"""Instance attacks: computed for each image on a target model."""
