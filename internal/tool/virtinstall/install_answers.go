package virtinstall

import (
	"encoding/xml"
	"fmt"
	"strings"

	"github.com/lamina-vm/lamina/internal/names"
)

// hostname is what the guest is called.
func (u *unattended) hostname() string { return names.Hostname(u.g.dom.Get("name")) }

// rootPassword is root's, "" where root is locked.
func (u *unattended) rootPassword() string { return u.adminPassword }

// quoted is a word for a shell or a kickstart.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// escaped is text for XML.
func escaped(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder takes all
	return b.String()
}

// kickstart is the answers for Anaconda: Fedora, RHEL and those like it.
func (u *unattended) kickstart() string {
	var b strings.Builder
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(&b, format+"\n", args...) }
	if u.oldAnaconda() {
		line("install")
	}
	line("text")
	line("lang en_US.UTF-8\nkeyboard us")
	line("timezone --utc %s", timezone())
	line("network --bootproto=dhcp --hostname=%s", u.hostname())
	if u.rootPassword() == "" {
		line("rootpw --lock")
	} else {
		line("rootpw --plaintext %s", quoted(u.rootPassword()))
	}
	if u.user != "" && u.passwordGiven {
		line("user --name=%s --groups=wheel --plaintext --password=%s", u.user, quoted(u.userPassword))
	}
	line("firstboot --disable\nselinux --enforcing\nfirewall --enabled --service=ssh")
	line("zerombr\nclearpart --all --initlabel\nautopart\nbootloader --location=mbr")
	line("reboot\n\n%%packages")
	if u.profile == "desktop" && u.g.os.Distro == "fedora" {
		line("@^workstation-product-environment")
	} else {
		line("@core")
	}
	line("qemu-guest-agent\n%%end")
	return b.String()
}

// preseed is the answers for debian-installer.
func (u *unattended) preseed() string {
	var b strings.Builder
	set := func(owner, key, kind, value string) {
		_, _ = fmt.Fprintf(&b, "%s %s %s %s\n", owner, key, kind, value)
	}
	for _, q := range [][3]string{
		{"debian-installer/locale", "string", "en_US.UTF-8"},
		{"keyboard-configuration/xkb-keymap", "select", "us"},
		{"netcfg/choose_interface", "select", "auto"},
		{"netcfg/get_hostname", "string", u.hostname()},
		{"netcfg/get_domain", "string", "unassigned-domain"},
		{"hw-detect/load_firmware", "boolean", "false"},
		{"time/zone", "string", timezone()},
		{"clock-setup/utc", "boolean", "true"},
		{"passwd/user-fullname", "string", u.user},
		{"passwd/username", "string", u.user},
		{"passwd/user-password", "password", u.userPassword},
		{"passwd/user-password-again", "password", u.userPassword},
		{"user-setup/allow-password-weak", "boolean", "true"},
		{"user-setup/encrypt-home", "boolean", "false"},
		{"partman-auto/method", "string", "regular"},
		{"partman-auto/choose_recipe", "select", "atomic"},
		{"partman-partitioning/confirm_write_new_label", "boolean", "true"},
		{"partman/choose_partition", "select", "finish"},
		{"partman/confirm", "boolean", "true"},
		{"partman/confirm_nooverwrite", "boolean", "true"},
		{"apt-setup/cdrom/set-first", "boolean", "false"},
		{"mirror/country", "string", "manual"},
		{"mirror/http/hostname", "string", map[bool]string{true: "archive.ubuntu.com", false: "deb.debian.org"}[u.g.os.Distro == "ubuntu"]},
		{"mirror/http/directory", "string", "/" + u.g.os.Distro},
		{"mirror/http/proxy", "string", ""},
		{"pkgsel/include", "string", "openssh-server qemu-guest-agent"},
		{"pkgsel/update-policy", "select", "none"},
		{"grub-installer/only_debian", "boolean", "true"},
		{"grub-installer/bootdev", "string", "default"},
		{"finish-install/reboot_in_progress", "note", ""},
		{"cdrom-detect/eject", "boolean", "true"},
	} {
		set("d-i", q[0], q[1], q[2])
	}
	if u.rootPassword() == "" {
		set("d-i", "passwd/root-login", "boolean", "false")
	} else {
		set("d-i", "passwd/root-login", "boolean", "true")
		set("d-i", "passwd/root-password", "password", u.rootPassword())
		set("d-i", "passwd/root-password-again", "password", u.rootPassword())
	}
	tasks := "standard, ssh-server"
	if u.profile == "desktop" {
		tasks = "standard, desktop, ssh-server"
	}
	set("tasksel", "tasksel/first", "multiselect", tasks)
	set("popularity-contest", "popularity-contest/participate", "boolean", "false")
	return b.String()
}

// autoinstall is the answers for Ubuntu's installer from 20.04 on. The user is
// made by cloud-init at the first boot, as the installer's own answer wants a
// password that is hashed already.
func (u *unattended) autoinstall() string {
	var b strings.Builder
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(&b, format+"\n", args...) }
	line("#cloud-config\nautoinstall:\n  version: 1\n  locale: en_US.UTF-8\n  keyboard: {layout: us}")
	line("  storage: {layout: {name: direct}}\n  ssh: {install-server: true, allow-pw: true}\n  packages: [qemu-guest-agent]")
	line("  shutdown: reboot\n  user-data:\n    hostname: %s\n    timezone: %s\n    disable_root: %v", yamlString(u.hostname()), yamlString(timezone()), u.rootPassword() == "")
	line("    users:\n    - name: %s\n      groups: [adm, sudo]\n      shell: /bin/bash\n      lock_passwd: false\n      sudo: ALL=(ALL) ALL", yamlString(u.user))
	line("    chpasswd:\n      expire: false\n      list:\n      - %s", yamlString(u.user+":"+u.userPassword))
	if u.rootPassword() != "" {
		line("      - %s", yamlString("root:"+u.rootPassword()))
	}
	return b.String()
}

// autoyast is the answers for YaST.
func (u *unattended) autoyast() string {
	var b strings.Builder
	b.WriteString(`<?xml version="1.0"?>
<!DOCTYPE profile>
<profile xmlns="http://www.suse.com/1.0/yast2ns" xmlns:config="http://www.suse.com/1.0/configns">
  <general><mode><confirm config:type="boolean">false</confirm></mode></general>
  <bootloader><global><timeout config:type="integer">1</timeout></global></bootloader>
`)
	_, _ = fmt.Fprintf(&b, "  <timezone><hwclock>UTC</hwclock><timezone>%s</timezone></timezone>\n", escaped(timezone()))
	_, _ = fmt.Fprintf(&b, "  <networking><dns><hostname>%s</hostname></dns><keep_install_network config:type=\"boolean\">true</keep_install_network></networking>\n", escaped(u.hostname()))
	b.WriteString("  <users config:type=\"list\">\n")
	add := func(name, password string) {
		_, _ = fmt.Fprintf(&b, "    <user><username>%s</username><user_password>%s</user_password><encrypted config:type=\"boolean\">false</encrypted></user>\n", escaped(name), escaped(password))
	}
	if u.rootPassword() != "" {
		add("root", u.rootPassword())
	}
	if u.user != "" && u.passwordGiven {
		add(u.user, u.userPassword)
	}
	b.WriteString("  </users>\n")
	if u.regLogin != "" {
		_, _ = fmt.Fprintf(&b, "  <suse_register><do_registration config:type=\"boolean\">true</do_registration><email>%s</email><reg_code>%s</reg_code></suse_register>\n", escaped(u.regLogin), escaped(u.productKey))
	}
	pattern := "minimal_base"
	if u.profile == "desktop" {
		pattern = "gnome"
	}
	_, _ = fmt.Fprintf(&b, "  <software><patterns config:type=\"list\"><pattern>base</pattern><pattern>%s</pattern></patterns></software>\n", pattern)
	b.WriteString("  <services-manager><services><enable config:type=\"list\"><service>sshd</service></enable></services></services-manager>\n</profile>\n")
	return b.String()
}

// autounattend is the answers for Windows Setup.
func (u *unattended) autounattend() string {
	var b strings.Builder
	const component = `    <component name="%s" processorArchitecture="amd64" publicKeyToken="31bf3856ad364e35" language="neutral" versionScope="nonSxS">` + "\n"
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(&b, format+"\n", args...) }
	language := "<UILanguage>en-US</UILanguage><InputLocale>0409:00000409</InputLocale><SystemLocale>en-US</SystemLocale><UserLocale>en-US</UserLocale>"
	line(`<?xml version="1.0" encoding="utf-8"?>`)
	line(`<unattend xmlns="urn:schemas-microsoft-com:unattend" xmlns:wcm="http://schemas.microsoft.com/WMIConfig/2002/State">`)
	line(`  <settings pass="windowsPE">`)
	_, _ = fmt.Fprintf(&b, component, "Microsoft-Windows-International-Core-WinPE")
	line("      <SetupUILanguage><UILanguage>en-US</UILanguage></SetupUILanguage>%s\n    </component>", language)
	_, _ = fmt.Fprintf(&b, component, "Microsoft-Windows-Setup")
	u.windowsDisk(line)
	line("      <UserData><AcceptEula>true</AcceptEula>%s</UserData>\n    </component>\n  </settings>", u.windowsKey())
	line(`  <settings pass="specialize">`)
	_, _ = fmt.Fprintf(&b, component, "Microsoft-Windows-Shell-Setup")
	name := u.hostname()
	line("      <ComputerName>%s</ComputerName>\n    </component>\n  </settings>", escaped(name[:min(15, len(name))]))
	line(`  <settings pass="oobeSystem">`)
	_, _ = fmt.Fprintf(&b, component, "Microsoft-Windows-Shell-Setup")
	line("      <OOBE><HideEULAPage>true</HideEULAPage><HideWirelessSetupInOOBE>true</HideWirelessSetupInOOBE><ProtectYourPC>3</ProtectYourPC></OOBE>\n      <UserAccounts>")
	if u.adminPassword != "" {
		line("        <AdministratorPassword><Value>%s</Value><PlainText>true</PlainText></AdministratorPassword>", escaped(u.adminPassword))
	}
	if u.user != "" {
		line(`        <LocalAccounts><LocalAccount wcm:action="add"><Name>%s</Name><Group>Administrators</Group><Password><Value>%s</Value><PlainText>true</PlainText></Password></LocalAccount></LocalAccounts>`,
			escaped(u.user), escaped(u.userPassword))
	}
	line("      </UserAccounts>\n    </component>\n  </settings>\n</unattend>")
	return b.String()
}

func (u *unattended) windowsKey() string {
	if u.productKey == "" {
		return ""
	}
	return "<ProductKey><Key>" + escaped(u.productKey) + "</Key></ProductKey>"
}

// windowsDisk lays the first disk out: with UEFI a system partition, a
// reserved one and the rest; else one partition.
func (u *unattended) windowsDisk(line func(string, ...any)) {
	part := func(order int, kind, more string) string {
		return fmt.Sprintf(`<CreatePartition wcm:action="add"><Order>%d</Order><Type>%s</Type>%s</CreatePartition>`, order, kind, more)
	}
	format := func(order, id int, more string) string {
		return fmt.Sprintf(`<ModifyPartition wcm:action="add"><Order>%d</Order><PartitionID>%d</PartitionID>%s</ModifyPartition>`, order, id, more)
	}
	parts, formats, target := part(1, "Primary", "<Extend>true</Extend>"), format(1, 1, "<Format>NTFS</Format><Active>true</Active>"), 1
	if u.g.uefi() || u.g.wantsUEFI || u.g.os.NeedsUEFI("x86_64") {
		parts = part(1, "EFI", "<Size>100</Size>") + part(2, "MSR", "<Size>16</Size>") + part(3, "Primary", "<Extend>true</Extend>")
		formats, target = format(1, 1, "<Format>FAT32</Format>")+format(2, 3, "<Format>NTFS</Format>"), 3
	}
	line(`      <DiskConfiguration><Disk wcm:action="add"><DiskID>0</DiskID><WillWipeDisk>true</WillWipeDisk><CreatePartitions>%s</CreatePartitions><ModifyPartitions>%s</ModifyPartitions></Disk></DiskConfiguration>`, parts, formats)
	line(`      <ImageInstall><OSImage><InstallTo><DiskID>0</DiskID><PartitionID>%d</PartitionID></InstallTo><InstallFrom><MetaData wcm:action="add"><Key>/IMAGE/INDEX</Key><Value>1</Value></MetaData></InstallFrom></OSImage></ImageInstall>`, target)
}
