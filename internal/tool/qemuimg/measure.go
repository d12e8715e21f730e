package qemuimg

const measureSyntax = "[--output=ofmt] [-O output_fmt] [-o options] [--size N | [--object objectdef] [--image-opts] [-f fmt] [-l snapshot_param] [-U] filename]"

func (t *tool) measure(args []string) int {
	return t.exit("Command not supported yet: %s", args[0])
}
