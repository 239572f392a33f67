"""The stages that ship: one file each, which reads like the method."""
