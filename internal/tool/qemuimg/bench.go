package qemuimg

const benchSyntax = "[--object objectdef] [--image-opts] [-c count] [-d depth] [-f fmt] [--flush-interval=flush_interval] [-i aio] [-n] [--no-drain] [-o offset] [--pattern=pattern] [-q] [-s buffer_size] [-S step_size] [-t cache] [-w] [-U] filename"

func (t *tool) bench(args []string) int {
	return t.exit("Command not supported yet: %s", args[0])
}
