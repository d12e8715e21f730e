package qemuimg

const snapshotSyntax = "[--object objectdef] [--image-opts] [-U] [-q] [-l | -a snapshot | -c snapshot | -d snapshot] filename"

func (t *tool) snapshot(args []string) int {
	return t.exit("Command not supported yet: %s", args[0])
}
