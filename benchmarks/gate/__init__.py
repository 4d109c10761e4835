"""Whether a change has made steps slower, without a clock."""
