"""What a process reward is used for: rewards for TRL's trainers, rejection-sampling fine-tuning."""
