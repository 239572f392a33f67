"""Who says which reply is better, and about which replies they are asked."""
