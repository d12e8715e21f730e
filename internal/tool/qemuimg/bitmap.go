package qemuimg

const bitmapSyntax = "(--merge SOURCE | --add | --remove | --clear | --enable | --disable)... [-b source_file [-F source_fmt]] [-g granularity] [--object objectdef] [--image-opts | -f fmt] filename bitmap"

func (t *tool) bitmap(args []string) int {
	return t.exit("Command not supported yet: %s", args[0])
}
