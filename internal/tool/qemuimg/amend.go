package qemuimg

const amendSyntax = "[--object objectdef] [--image-opts] [-p] [-q] [-f fmt] [-t cache] [--force] -o options filename"

func (t *tool) amend(args []string) int {
	return t.exit("Command not supported yet: %s", args[0])
}
