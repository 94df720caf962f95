package embedded_test

func worker() bool { return false }
