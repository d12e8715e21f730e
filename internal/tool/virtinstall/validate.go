package virtinstall

import (
	"context"
	"errors"
	"strconv"
)

const installMethods = "--location URL, --cdrom CD/ISO, --pxe, --import, --boot hd|cdrom|..."

// validate reports what is missing or cannot work, all at once, and warns of
// what may not work well.
func (g *guest) validate(ctx context.Context, in *installation) error {
	text := ""
	if !g.args.has("reinstall") {
		if g.dom.Find("memory") == nil && g.dom.Find("cpu/numa/cell") == nil {
			text += "\n--memory amount in MiB is required"
		}
		if !g.container() && !g.args.has("disk") && !g.args.has("filesystem") && len(g.devices("disk")) == 0 {
			text += "\n--disk storage must be specified (override with --disk none)"
		}
	}
	if !g.container() && !in.specified() {
		text += "\nAn install method must be specified\n(" + installMethods + ")"
	}
	if text != "" {
		return errors.New(text)
	}
	if g.dom.Get("launchSecurity/@type") == "sev" && (!g.q35() || !g.uefi()) {
		return errors.New("SEV launch security requires a Q35 UEFI machine")
	}
	if err := g.checkMACs(ctx); err != nil {
		return err
	}
	if g.generic() && g.hvm() {
		g.warn("Using --osinfo %s, VM performance may suffer. Specify an accurate OS for optimal results.", g.os.ShortID)
	}
	g.warnMemory()
	return nil
}

// warnMemory warns of less memory than the guest OS needs.
func (g *guest) warnMemory() {
	now, err := strconv.ParseInt(g.dom.Get("currentMemory"), 10, 64)
	if err != nil || now == 0 {
		return
	}
	switch least := g.os.Minimum(g.arch()).Memory; {
	case least > now<<10:
		g.warn("Requested memory %d MiB is less than the recommended %d MiB for OS %s", now>>10, least>>20, g.os.ShortID)
	case least == 0 && now>>10 < 17:
		g.warn("Requested memory %d MiB is abnormally low. Were you trying to specify GiB?", now>>10)
	}
}
