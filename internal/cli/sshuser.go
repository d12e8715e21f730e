package cli

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/names"
)

// sshUser returns the user to log in as: the one asked for, the machine's, the
// one that the guest named before, or the one that it names now.
func (o *sshOptions) sshUser(ctx context.Context, a *app, program string, m api.Machine, h home.Home) string {
	switch {
	case o.user != "":
		return o.user
	case m.User != "":
		return m.User
	}
	known := filepath.Join(m.Dir, home.SSHUserFile)
	if b, err := os.ReadFile(known); err == nil && names.IsUser(string(b)) {
		return string(b)
	}
	user := o.askUser(ctx, program, m, h)
	if user == "" {
		a.note("lamina: the image's user is not known; trying root (-l USER for another)")
		return "root"
	}
	// It is asked for again where it cannot be kept.
	_ = os.WriteFile(known, []byte(user), 0o600)
	return user
}

// askUser tries to log in as root. cloud-init lets root's keys in only to say
// who to log in as ("Please login as the user "debian" rather than the user
// "root"."), and then sleeps. It returns "" where the guest names nobody.
func (o *sshOptions) askUser(ctx context.Context, program string, m api.Machine, h home.Home) string {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	argv := o.argv(m, "root", h, []string{"true"})
	cmd := exec.CommandContext(ctx, program, append([]string{"-o", "BatchMode=yes"}, argv[1:]...)...)
	cmd.WaitDelay = time.Second
	out, err := cmd.StdoutPipe()
	if err != nil || cmd.Start() != nil {
		return ""
	}
	if user := namedUser(out); user != "" {
		cancel() // or it would sleep on
		_ = cmd.Wait()
		return user
	}
	if cmd.Wait() != nil {
		return ""
	}
	return "root" // it was let in
}

// namedUser reads the user's name out of what cloud-init says to root.
func namedUser(r io.Reader) string {
	lines := bufio.NewScanner(io.LimitReader(r, 16<<10))
	for lines.Scan() {
		_, rest, ok := strings.Cut(lines.Text(), `login as the user "`)
		if !ok {
			continue
		}
		if user, _, ok := strings.Cut(rest, `"`); ok && names.IsUser(user) {
			return user
		}
	}
	return ""
}
