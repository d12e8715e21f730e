package qemuimg

const rebaseSyntax = "[--object objectdef] [--image-opts] [-U] [-q] [-f fmt] [-t cache] [-T src_cache] [-p] [-u] -b backing_file [-F backing_fmt] filename"

func (t *tool) rebase(args []string) int {
	return t.exit("Command not supported yet: %s", args[0])
}
