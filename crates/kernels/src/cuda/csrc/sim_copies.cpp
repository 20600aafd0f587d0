// Asynchronous copies of 16 bytes, each thread's in groups.
#include "sim_core.h"

namespace sim {

static void land(Copy &copy) {
    if (!copy.landed) memcpy(running.shared + (copy.to - SHARED_BASE), copy.bytes, 16);
    copy.landed = true;
}

void cp16(u32 to, const void *from, bool ok, Site site) {
    u8 *target = shared_at(to, 16, site);
    Copy copy = {to, block->lane_now().groups, false, site, {}};
    if (ok) {
        check_load(from, 16, site);
        memcpy(copy.bytes, from, 16);
    }
    if (running.races) race_copy_begin(to, 16, site);
    Copies when = block->options.copies;
    if (when == Copies::Eager || (when == Copies::Random && block->chance(3))) land(copy);
    else memset(target, 0xff, 16);
    block->lane_now().copies.push_back(copy);
}

void cp_commit() {
    Lane &lane = block->lane_now();
    lane.groups++;
    if (block->options.copies != Copies::Random) return;
    for (Copy &copy : lane.copies)
        if (block->chance(3)) land(copy);
}

void cp_wait(u32 groups, Site) {
    Lane &lane = block->lane_now();
    auto waited = lane.copies.begin();
    while (waited != lane.copies.end() && waited->group + groups < lane.groups) {
        land(*waited);
        if (running.races) race_copy_end(waited->to, 16, waited->site);
        waited++;
    }
    lane.copies.erase(lane.copies.begin(), waited);
}

} // namespace sim
