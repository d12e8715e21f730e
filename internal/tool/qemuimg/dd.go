package qemuimg

const ddSyntax = "[--object objectdef] [--image-opts] [-U] [-f fmt] [-O output_fmt] [bs=block_size] [count=blocks] [skip=blocks] if=input of=output"

func (t *tool) dd(args []string) int {
	return t.exit("Command not supported yet: %s", args[0])
}
