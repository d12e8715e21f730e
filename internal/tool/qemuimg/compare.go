package qemuimg

const compareSyntax = "[--object objectdef] [--image-opts] [-f fmt] [-F fmt] [-T src_cache] [-p] [-q] [-s] [-U] filename1 filename2"

func (t *tool) compare(args []string) int {
	return t.exit("Command not supported yet: %s", args[0])
}
