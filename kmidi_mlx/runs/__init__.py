"""What a training run is in any framework: loop, schedule, tracker, tasks without their network."""
