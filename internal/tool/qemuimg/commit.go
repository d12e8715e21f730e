package qemuimg

const commitSyntax = "[--object objectdef] [--image-opts] [-q] [-f fmt] [-t cache] [-b base] [-r rate_limit] [-d] [-p] filename"

func (t *tool) commit(args []string) int {
	return t.exit("Command not supported yet: %s", args[0])
}
