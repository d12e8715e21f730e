package qemu

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm/screen"
)

// ScreenPNG implements [vm.Machine]. QEMU draws a PPM, which every version of
// it can; PNG needs 7.1 built with libpng.
func (m *machine) ScreenPNG(ctx context.Context) ([]byte, error) {
	pic, err := m.screendump(ctx)
	if err != nil {
		return nil, err
	}
	return pic.PNG()
}

// screendump returns the screen as it is shown now.
func (m *machine) screendump(ctx context.Context) (screen.Picture, error) {
	f, err := os.CreateTemp(m.dir, home.ScreenFiles)
	if err != nil {
		return screen.Picture{}, fmt.Errorf("%w: %w", screen.ErrNoScreen, err)
	}
	name := f.Name()
	defer func() { _ = os.Remove(name) }() // a leftover goes with the machine
	defer func() { _ = f.Close() }()
	// Named relative to QEMU's working directory, as everything is.
	args := map[string]string{"filename": filepath.Base(name)}
	if err := m.execute(ctx, "screendump", args, nil); err != nil {
		return screen.Picture{}, err
	}
	pic, err := screen.ReadPPM(f)
	if err != nil {
		return screen.Picture{}, fmt.Errorf("%w: QEMU's picture: %w", screen.ErrNoScreen, err)
	}
	return pic, nil
}

// ScreenText implements [vm.Machine].
func (m *machine) ScreenText(ctx context.Context) ([]string, error) {
	return screen.Text(
		func() (screen.Picture, error) { return m.screendump(ctx) },
		func(command string) (out string, err error) {
			err = m.execute(ctx, "human-monitor-command", map[string]string{"command-line": command}, &out)
			return out, err
		})
}
