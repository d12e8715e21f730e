#!/bin/sh
# Starts Lamina's agent and has it start in later boots. Run once by cloud-init.
chmod 755 /usr/local/sbin/lamina-agent
if [ -d /run/systemd/system ]; then
    ! command -v restorecon >/dev/null || restorecon /usr/local/sbin/lamina-agent /etc/systemd/system/lamina-agent.service
    systemctl daemon-reload
    systemctl enable lamina-agent.service
    systemctl start --no-block lamina-agent.service
    exit 0
fi
# Elsewhere it runs in this boot only, which is the one that is kept.
rm -f /etc/systemd/system/lamina-agent.service
setsid /usr/local/sbin/lamina-agent </dev/null >/dev/null 2>&1 &
